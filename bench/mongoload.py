"""Point reads of a MongoDB collection by many clients at once.

    mongoload.py fill URI ROWS
    mongoload.py read URI ROWS CLIENTS READS

Prints the median of how long a read took, in milliseconds. Belongs here: this load, in a process of its own.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from typing import Any

import pymongo


def fill(uri: str, rows: int) -> None:
    """Make the collection."""
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        points = client.demo.points
        points.drop()
        points.insert_many({"_id": str(number), "text": f"{number:040}"} for number in range(rows))


def read(uri: str, rows: int, clients: int, reads: int) -> float:
    """Each client has one connection, and reads `reads` documents one after the other; the median, seconds."""
    took: list[float] = []
    ready = threading.Barrier(clients)

    def one(first: int) -> None:
        with pymongo.MongoClient[dict[str, Any]](uri, maxPoolSize=1) as client:
            points = client.demo.points
            found = points.find_one({"_id": str(first)})
            ready.wait()
            mine = []
            for number in range(reads):
                began = time.perf_counter()
                found = points.find_one({"_id": str((first * 7919 + number * 31) % rows)})
                mine.append(time.perf_counter() - began)
                assert found is not None
            took.extend(mine)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(took) != clients * reads:
        raise SystemExit("a reader failed")
    return statistics.median(took)


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill(sys.argv[2], int(sys.argv[3]))
    else:
        print(read(sys.argv[2], *map(int, sys.argv[3:])) * 1000)
