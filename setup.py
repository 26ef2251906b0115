from setuptools import find_packages, setup

# pytest imports the package that a plugin lies in, in every run. As `maskedgrad_pytest` the plugin
# is found without TensorFlow being imported.
setup(
    packages=[
        *find_packages(
            include=["maskedgrad", "maskedgrad.*"], exclude=["maskedgrad.pytest_plugin"]
        ),
        "maskedgrad_pytest",
    ],
    package_dir={"maskedgrad_pytest": "maskedgrad/pytest_plugin"},
)
