from setuptools import find_packages, setup
from setuptools.command.sdist import sdist


class SourceDistribution(sdist):
    """All that is worked on: setuptools packs neither helpers of tests nor pages by itself.

    `MANIFEST.in` would say it too, in one file more.
    """

    def make_distribution(self):
        for folder in ("docs", "tests", ".ci", ".github"):
            self.filelist.graft(folder)
        for file in (".gitignore", ".pre-commit-config.yaml", ".ruff.toml"):
            self.filelist.include(file)
        self.filelist.prune("docs/_build")
        self.filelist.global_exclude("*.py[cod]")
        super().make_distribution()


# pytest imports the package that a plugin lies in, in every run. As `maskedgrad_pytest` the plugin
# is found without TensorFlow being imported.
setup(
    cmdclass={"sdist": SourceDistribution},
    packages=[
        *find_packages(
            include=["maskedgrad", "maskedgrad.*"], exclude=["maskedgrad.pytest_plugin"]
        ),
        "maskedgrad_pytest",
    ],
    package_dir={"maskedgrad_pytest": "maskedgrad/pytest_plugin"},
)
