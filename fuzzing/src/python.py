"""Extracts archives with tarfile, one for each line of input `ARCHIVE<tab>DIRECTORY`."""

import sys
import tarfile

for line in sys.stdin:
    archive, directory = line.rstrip("\n").split("\t")
    try:
        with tarfile.open(archive, errorlevel=2) as tar:
            how = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
            tar.extractall(directory, numeric_owner=True, **how)
        said = "done"
    except Exception as error:
        said = "failed: " + repr(error).replace("\n", " ")
    print(said, flush=True)
