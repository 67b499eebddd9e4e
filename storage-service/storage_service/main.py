"""`python -m storage_service.main` serves. Nothing happens on import, and nothing is imported that a decoder can spare.

Every child process imports this module again, as Python's multiprocessing has it, before it does its own work.
"""

from __future__ import annotations


def main() -> None:
    """Read the settings and serve until told to stop."""
    from pixelgate_common.service import serve

    from storage_service.app import create_app
    from storage_service.settings import Settings

    settings = Settings()
    serve(create_app(settings), settings, "storage-service")


if __name__ == "__main__":
    main()
