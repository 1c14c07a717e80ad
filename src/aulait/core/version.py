"""The version of this package: of the installed distribution, which takes it from the tags of git
when it is built."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(distribution: str) -> str:
    """The version of an installed distribution; "0+unknown" of sources that nobody installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "0+unknown"


PACKAGE_VERSION = installed_version("aulait")
