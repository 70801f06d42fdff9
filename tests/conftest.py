"""In tests every annotation of zoo is checked, shapes included, with an int accepted for a float (PEP 484)."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
install_import_hook("zoo", "tests.conftest.check")
