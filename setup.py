"""Puts the configs of `configs/` into the wheel, as `spatl/configs`, so that `spatl run quickstart` works anywhere.

Everything else about the package stands in pyproject.toml. An editable install finds them in the checkout
(`spatl.shipped`).
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = sorted(path.as_posix() for path in Path("configs").rglob("*.yaml"))


class BuildWithConfigs(build_py):
    """The usual build, and the configs."""

    def run(self) -> None:
        """Copy packages, then configs."""
        super().run()
        if not self.editable_mode:
            for path in CONFIGS:
                target = self._target(path)
                self.mkpath(str(target.parent))
                self.copy_file(path, str(target))

    def get_source_files(self) -> list[str]:
        """What a source distribution holds."""
        return [*super().get_source_files(), *CONFIGS]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """What a wheel holds."""
        return [*super().get_outputs(include_bytecode), *(str(self._target(path)) for path in CONFIGS)]

    def _target(self, path: str) -> Path:
        return Path(self.build_lib) / "spatl" / path


setup(cmdclass={"build_py": BuildWithConfigs})
