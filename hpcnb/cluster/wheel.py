"""The hpcnb that runs here as a wheel: packed from its own files, so it is the same also where it runs from a clone."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from importlib import metadata, resources
from pathlib import Path

from hpcnb.core.version import __version__

__all__ = ["file_name", "pack"]

_WHEEL = "Wheel-Version: 1.0\nGenerator: hpcnb\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_METADATA = f"Metadata-Version: 2.1\nName: hpcnb\nVersion: {__version__}\nRequires-Python: >=3.10\n"


def file_name() -> str:
    """As pip wants it."""
    return f"hpcnb-{__version__}-py3-none-any.whl"


def pack() -> bytes:
    """The wheel; the same files give the same bytes."""
    package = Path(str(resources.files("hpcnb")))
    paths = sorted(path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
    files = {f"hpcnb/{path.relative_to(package).as_posix()}": path.read_bytes() for path in paths}
    folder = f"hpcnb-{__version__}.dist-info"
    files[f"{folder}/METADATA"] = _installed("METADATA", _METADATA)
    files[f"{folder}/entry_points.txt"] = _installed("entry_points.txt", "")
    files[f"{folder}/WHEEL"] = _WHEEL.encode()
    record = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{folder}/RECORD"] = "\n".join([*record, f"{folder}/RECORD,,", ""]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980, whenever it is packed
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _installed(name: str, otherwise: str) -> bytes:
    """What was installed says of itself, if it is this version."""
    try:
        distribution = metadata.distribution("hpcnb")
    except metadata.PackageNotFoundError:
        return otherwise.encode()
    return ((distribution.read_text(name) or otherwise) if distribution.version == __version__ else otherwise).encode()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
