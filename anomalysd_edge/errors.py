"""Every error that anomalysd-edge raises on purpose. The command line turns each into one sentence and exit code 2.

SDEdgeError
|-- InputError         a photo, folder or argument that cannot be used
|   |-- ImageError     one photo cannot be read or used
|   |-- DatasetError   a folder does not hold what its layout promises
|   `-- ClassError     a class name or class file that is unknown or wrong
|-- SettingsError      settings that contradict each other
|-- RunError           a training run folder that is missing, broken or does not match
|-- BundleError        a bundle that is incomplete, changed, or of a newer schema
|-- RegistryError      a registry of bundles that cannot be reached, or holds something else than it says
|-- ShapeError         an array of the wrong shape or dtype reached a network
|-- NumericError       NaN or Inf left a network: no score is made of it
|-- ParityError        two backends disagree by more than their tolerance
|-- BackendError       the asked-for device or library is not there, or it failed
|   |-- DeviceLost     the device answers nothing any more in this process
|   `-- EngineMismatch an engine was built for another graph, library or GPU
`-- MissingExtra       a package is missing; the message names the extra that brings it
"""

from __future__ import annotations


class SDEdgeError(Exception):
    """Root of the tree. Its message says what was found, what was expected and what to do."""


class InputError(SDEdgeError):
    """A photo, folder or argument that cannot be used."""


class ImageError(InputError):
    """One photo cannot be read or used; the message names it."""


class DatasetError(InputError):
    """A folder does not hold what its layout promises."""


class ClassError(InputError):
    """A class name or class file that is unknown or wrong."""


class SettingsError(SDEdgeError):
    """Settings that contradict each other or lie outside their range."""


class RunError(SDEdgeError):
    """A training run folder that is missing, broken or does not match."""


class BundleError(SDEdgeError):
    """A bundle that is incomplete, changed, or of a newer schema."""


class RegistryError(SDEdgeError):
    """A registry of bundles that cannot be reached, or holds something else than it says."""


class ShapeError(SDEdgeError):
    """An array of the wrong shape or dtype reached a network."""


class NumericError(SDEdgeError):
    """NaN or Inf left a network: no score is made of it."""


class ParityError(SDEdgeError):
    """Two backends disagree by more than their tolerance."""


class BackendError(SDEdgeError):
    """The asked-for device or library is not there."""


class DeviceLost(BackendError):
    """The device answers nothing any more in this process: only a new process gets it back."""


class EngineMismatch(BackendError):
    """An engine was built from another graph, by another library or for another GPU; the message names the field."""


class MissingExtra(SDEdgeError):
    """A package is missing; the message names the extra that brings it.

    Built with :func:`missing_extra`.
    """


def missing_extra(package: str, extra: str) -> MissingExtra:
    """The one wording for a package that an extra would have brought."""
    return MissingExtra(
        f"this needs the package {package!r}, which is not installed: pip install 'anomalysd-edge[{extra}]'"
    )
