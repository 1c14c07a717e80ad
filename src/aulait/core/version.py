"""The version of this package; the distribution's own is compared with it by a test."""

PACKAGE_VERSION = "0.1.0"
