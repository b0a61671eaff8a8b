"""Print how many percent of the topics get another consumer: moved_topics.py DIRECTORY NEW_CONSUMER...

And whether TLS comes or goes.
"""

import math
import pathlib
import sys
import tomllib

TLS = "wss://"

directory, *new = sys.argv[1:]
file = next(pathlib.Path(directory).glob("producer-*.toml"), None)
old = tomllib.loads(file.read_text())["consumers"] if file and new else new
tls = [any(address.startswith(TLS) for address in addresses) for addresses in (old, new)]
# hash % len(old) and hash % len(new) repeat together after this number of hashes.
period = math.lcm(len(old), len(new))
moved = sum(
    old[number % len(old)].removeprefix(TLS) != new[number % len(new)].removeprefix(TLS)
    for number in range(period)
)
print(math.ceil(100 * moved / period) if period else 0)
print("TLS changes" if tls[0] != tls[1] else "TLS stays")
