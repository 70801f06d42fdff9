"""In tests every annotation of zoo is checked, shapes included, with an int accepted for a float (PEP 484)."""

import os

from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

# Workers side by side share the cores; two OpenMP threads that wait for one core are many times slower than one.
# Read when torch is imported, also by the processes that tests start.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
install_import_hook("zoo", "tests.conftest.check")

settings.register_profile("zoo", deadline=None)  # a busy machine is no failure
settings.load_profile("zoo")
