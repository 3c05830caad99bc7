"""Says what pyproject.toml cannot: `gin/` and `tasks/` are installed inside the package.

There no folder of the user and no other package can hide them. `gin/` holds data: it never gets an
`__init__.py`, which would hide the gin-config package in a checkout.
"""

from pathlib import Path

from setuptools import find_packages, setup

GIN = {f"instructrec_jax.{p.parent}".replace("/", ".") for p in Path().glob("gin/*/*.gin")}

setup(
    packages=[*find_packages(include=["instructrec_jax*"]), *sorted(GIN), "instructrec_jax.tasks"],
    package_dir={"instructrec_jax.gin": "gin", "instructrec_jax.tasks": "tasks"},
)
