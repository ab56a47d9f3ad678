"""`python -m training`, the name of `python -m whetstone` until version 0.2."""

import runpy

if __name__ == "__main__":
    runpy.run_module("whetstone", run_name="__main__")
