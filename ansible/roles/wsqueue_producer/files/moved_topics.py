"""Print how many percent of the topics get another consumer: moved_topics.py DIRECTORY NEW_CONSUMER..."""

import math
import pathlib
import sys
import tomllib

directory, *new = (argument.removeprefix("wss://") for argument in sys.argv[1:])
file = next(pathlib.Path(directory).glob("producer-*.toml"), None)
found = tomllib.loads(file.read_text())["consumers"] if file and new else new
old = [address.removeprefix("wss://") for address in found]
# hash % len(old) and hash % len(new) repeat together after so many hashes.
period = math.lcm(len(old), len(new))
moved = sum(old[number % len(old)] != new[number % len(new)] for number in range(period))
print(math.ceil(100 * moved / period) if period else 0)
