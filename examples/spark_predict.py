"""`whetstone predict` for `spark-submit`, which wants a file.

spark-submit examples/spark_predict.py PACKAGE FILE ... --out FOLDER
"""

import sys

from whetstone.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:], "--engine", "spark"]))
