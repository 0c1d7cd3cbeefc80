"""The ``sgrec`` command as one of several ranks."""

from sgrec_torchrec.cli import main

if __name__ == "__main__":
    main()
