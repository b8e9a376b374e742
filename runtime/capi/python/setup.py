"""What pyproject.toml cannot say: the wheel's tag, and commands that are there only where the tools are. `bin/dev/wheel` fills in both."""

import os
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

TOOLS = ("export", "compile", "run", "inspect") if (Path(__file__).parent / "v2l_tools/bin/v2l").is_file() else ()
PLATFORM = os.environ.get("V2L_WHEEL_PLATFORM")


class Programs(Distribution):
    """A distribution with programs of one platform in it, where `bin/dev/wheel` put them."""

    def has_ext_modules(self):
        return bool(PLATFORM)


class Wheel(bdist_wheel):
    """One wheel for every Python: the library is reached through ctypes."""

    def get_tag(self):
        return ("py3", "none", PLATFORM) if PLATFORM else super().get_tag()


setup(
    distclass=Programs,
    cmdclass={"bdist_wheel": Wheel},
    entry_points={"console_scripts": ["v2l = v2l_tools:main", *(f"v2l-{tool} = v2l_tools:{tool}" for tool in TOOLS)]},
)
