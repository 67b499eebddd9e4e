"""Where the colour emoji font comes from. Only drawing scenes needs it; the trained weights do not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ENVIRONMENT_VARIABLE = "PIXELGATE_EMOJI_FONT"
PACKAGE = "fonts-noto-color-emoji"
FILE_NAME = "NotoColorEmoji.ttf"
SYSTEM_PATHS = (Path("/usr/share/fonts/truetype/noto") / FILE_NAME, Path("/usr/share/fonts/noto") / FILE_NAME)


class FontMissingError(RuntimeError):
    """The colour emoji font is not on this machine; the message says how to get it."""


def cache_path() -> Path:
    """Where a font fetched without root rights is kept."""
    return Path.home() / ".cache" / "pixelgate" / "fonts" / FILE_NAME


def find_font() -> Path:
    """Return the font file: the environment variable's, else the system's, else the cached one.

    Raises:
        FontMissingError: nothing was found, or the variable names a file that is not there.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file():
            raise FontMissingError(f"{ENVIRONMENT_VARIABLE} names {path}, which is not a file")
        return path
    for path in (*SYSTEM_PATHS, cache_path()):
        if path.is_file():
            return path
    raise FontMissingError(
        f"Drawing scenes needs the font {FILE_NAME}. Install Debian's or Ubuntu's package {PACKAGE} "
        f"(python -m starter_models.font does it, without root too), or set {ENVIRONMENT_VARIABLE} to the file."
    )


def ensure_font() -> Path:
    """Return the font file, and make it available through apt first when it is missing.

    As root the package is installed; as anybody else it is downloaded and unpacked into the cache folder.

    Raises:
        FontMissingError: there is no apt here, or apt failed.
    """
    try:
        return find_font()
    except FontMissingError:
        if os.environ.get(ENVIRONMENT_VARIABLE) or shutil.which("apt-get") is None:
            raise
    if os.geteuid() == 0:
        _run("apt-get", "update", "-q")
        _run("apt-get", "install", "-q", "-y", "--no-install-recommends", PACKAGE)
    else:
        with tempfile.TemporaryDirectory() as folder:
            _run("apt-get", "download", "-q", PACKAGE, folder=folder)
            (archive,) = Path(folder).glob("*.deb")
            _run("dpkg", "-x", str(archive), folder)
            (font,) = Path(folder).rglob(FILE_NAME)
            cache_path().parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(font, cache_path())
    return find_font()


def _run(*command: str, folder: str | None = None) -> None:
    """Run one apt or dpkg command; its own output goes to stderr."""
    try:
        subprocess.run(command, check=True, cwd=folder, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        raise FontMissingError(
            f"'{' '.join(command)}' failed ({error}); install {PACKAGE} yourself or set {ENVIRONMENT_VARIABLE}"
        ) from error


def main() -> int:
    """Make the font available and print its path."""
    try:
        print(ensure_font())
    except FontMissingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
