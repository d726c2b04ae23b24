#!/usr/bin/env python3
"""rows.py make DB | write DB NAME | check DB ROWS... | pack DB: the database of the sqlite job.

`write` inserts rows forever and prints each number after its commit; `check` wants an undamaged
database that holds every complete line of the ROWS files.
"""

import os
import sqlite3
import sys


def connect(path):
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    return database


def write(database, name):
    (number,) = database.execute("SELECT coalesce(max(number), 0) FROM rows WHERE name = ?", (name,)).fetchone()
    while True:
        number += 1
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO rows VALUES (?, ?, randomblob(700))", (name, number))
        database.execute("COMMIT")
        os.write(1, f"{name} {number}\n".encode())


def check(database, files):
    (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
    present = set(database.execute("SELECT name, number FROM rows"))
    lost, seen = [], 0
    for file in files:
        with open(file, encoding="ascii") as lines:
            for line in lines:
                name, number = line.split()
                seen += 1
                if (name, int(number)) not in present:
                    lost.append(line.strip())
    print(f"{verdict}; {seen} rows acknowledged, {len(present)} present, {len(lost)} lost {lost[:5]}")
    return verdict != "ok" or bool(lost) or seen == 0


def main():
    verb, path, *rest = sys.argv[1:]
    database = connect(path)
    if verb == "make":
        database.execute("CREATE TABLE rows (name TEXT, number INTEGER, body BLOB, PRIMARY KEY (name, number))")
        database.executemany("INSERT INTO rows VALUES ('base', ?, zeroblob(900))", [(n,) for n in range(500)])
    elif verb == "write":
        write(database, rest[0])
    elif verb == "check":
        return check(database, rest)
    else:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("VACUUM")
    database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
