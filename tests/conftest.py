"""In tests every annotation of zoo is checked, shapes included, with an int accepted for a float (PEP 484)."""

from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
install_import_hook("zoo", "tests.conftest.check")

settings.register_profile("zoo", deadline=None)  # a busy machine is no failure
settings.load_profile("zoo")
