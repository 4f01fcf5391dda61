#!/usr/bin/env python3
"""Stands in for curl, on machines without it, when tests run the curl commands that `disagg up` prints.

It supports what those commands use and refuses everything else.
"""

import argparse
import sys
import urllib.error
import urllib.request


def main():
    parser = argparse.ArgumentParser(prog="curl", allow_abbrev=False)
    parser.add_argument("-s", "--silent", action="store_true")
    parser.add_argument("-S", "--show-error", action="store_true")
    parser.add_argument("-N", "--no-buffer", action="store_true")
    parser.add_argument("-i", "--include", action="store_true")
    parser.add_argument("-X", "--request")
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("-d", "--data", "--json")
    parser.add_argument("url")
    options = parser.parse_args()

    url = options.url if "://" in options.url else f"http://{options.url}"
    data = None if options.data is None else options.data.encode()
    request = urllib.request.Request(url, data=data, method=options.request)
    for header in options.header:
        name, _, value = header.partition(":")
        request.add_header(name, value.strip())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        response = opener.open(request, timeout=120)
    except urllib.error.HTTPError as error:
        # Like curl: an answer with an error status is an answer.
        response = error
    except OSError as error:
        print(f"curl: {error}", file=sys.stderr)
        return 7
    with response:
        if options.include:
            print(f"HTTP/1.1 {response.status} {response.reason}")
            for name, value in response.headers.items():
                print(f"{name}: {value}")
            print(flush=True)
        for line in response:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
