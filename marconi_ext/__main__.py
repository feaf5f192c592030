"""`python -m marconi_ext` is the command `marconi`."""

from marconi_ext.cli import main

if __name__ == "__main__":
    main()
