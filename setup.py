"""Package metadata; every value comes from settings.ini, the same file that nbdev reads."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
package = settings["lib_name"]


def requirements(key: str) -> list[str]:
    "The requirement specifiers listed under `key`, one per line."
    return settings.get(key, "").split()


extras = {name: requirements(f"{name}_requirements") for name in ("run", "mocap", "anny", "video", "matting", "detectors")}
extras["dev"] = requirements("dev_requirements") + extras["run"]  # the tests execute the run notebooks

setup(
    name=package,
    version=settings["version"],
    description=settings["description"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    keywords=settings["keywords"].split(),
    license_expression="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    packages=[*find_packages(include=[package, f"{package}.*"]), f"{package}.jobs"],
    package_dir={f"{package}.jobs": "nbs/runs"},  # the job notebooks and their presets, for `drpose run`
    package_data={package: [f"assets/**/*.{kind}" for kind in ("npz", "json", "safetensors", "txt", "md", "yaml")], f"{package}.jobs": ["*.ipynb", "configs/*.yaml"]},
    include_package_data=False,  # only the kinds of file named above ship
    python_requires=f">={settings['min_python']}",
    install_requires=requirements("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": [f"{package}={package}.ground.command:main"], "nbdev": [f"{package}={package}._modidx:d"]},
    zip_safe=False,
)
