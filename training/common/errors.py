"""Errors that a user can mend: each is one sentence, printed without a traceback.

WhetstoneError
├── RecipeError       an unknown or impossible key, a recipe that cannot be read
├── DataError         a file, a column or a row of labeled text
├── BaseModelError    pre-trained weights that cannot be loaded or trusted
├── RunError          a run folder that cannot be used
│   ├── DivergedError     a loss that is no finite number: weights beyond repair
│   └── FullDiskError     no room for what has to be written
├── ExportError       a graph that does not answer as its checkpoint does
├── VerifyError       a copy or a service that differs from its package
│   └── KeyRefusedError   a service that wants another API key
├── PublishError      a place for packages that cannot be used, or has other content
├── CompareError      two packages that cannot be compared
├── ImageError        a container image that cannot be built
├── ClusterError      a request that kubectl refuses
│   └── ClusterUnreachableError   a cluster that does not answer now, and may later
└── ReleaseError      a release that was not made, or was undone
"""


class WhetstoneError(Exception):
    """The message says what is wrong, where, and what to do."""


class RecipeError(WhetstoneError):
    """The recipe or a `--key value` is wrong."""


class DataError(WhetstoneError):
    """The labeled text is wrong."""


class BaseModelError(WhetstoneError):
    """The pre-trained weights cannot be had or trusted."""


class RunError(WhetstoneError):
    """The run folder holds something else, or not what this step needs."""


class DivergedError(RunError):
    """The loss of a step, or of the validation rows, is not a finite number."""


class FullDiskError(RunError):
    """There is no room for what has to be written."""


class ExportError(WhetstoneError):
    """The exported graph does not answer as the checkpoint does."""


class VerifyError(WhetstoneError):
    """A service cannot be asked, or does not serve what it should."""


class KeyRefusedError(VerifyError):
    """The API key is missing or wrong: that says nothing about what the service serves."""


class PublishError(WhetstoneError):
    """A package cannot be put where it should go, or fetched from there."""


class CompareError(WhetstoneError):
    """Two packages, or a package and a file, cannot be compared."""


class ImageError(WhetstoneError):
    """There is no engine, no bento or no model to build an image of, or the build failed."""


class ClusterError(WhetstoneError):
    """kubectl is missing, or refuses what it was asked."""


class ClusterUnreachableError(ClusterError):
    """The cluster does not answer now, and may later."""


class ReleaseError(WhetstoneError):
    """Nothing was released, and what ran before still runs; or it does not, and this says so."""


class InterruptedRunError(WhetstoneError):
    """The user stopped the work; the message says how to go on."""


def install_command(extra: str) -> str:
    """What installs an extra, in the clone: on a package index another project has our name."""
    return f"pip install -c constraints.txt -e '.[{extra}]' (in the folder of this project)"
