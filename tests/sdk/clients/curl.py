"""curl, with the options that are this script's arguments."""

import subprocess
import sys
import tempfile

from driver import http_checks, main


def connect(way):
    def ask(method, path, body=None):
        command = ["curl", "-sS", "-N", "-L", "-m", "10", "-X", method, "-w", "%{stderr}%{http_code}", *sys.argv[1:]]
        for name, value in way["headers"].items():
            command += ["-H", f"{name}: {value}"]
        if way["host"]:
            command += ["-H", f"Host: {way['host']}"]
        if way["unix"]:
            command += ["--unix-socket", way["unix"]]
        if body is not None:
            upload = tempfile.NamedTemporaryFile()
            upload.write(body)
            upload.flush()
            command += ["--data-binary", f"@{upload.name}"]
        errors = tempfile.TemporaryFile()
        curl = subprocess.Popen([*command, way["url"] + path], stdout=subprocess.PIPE, stderr=errors)
        first = curl.stdout.read1(65536)

        def pieces():
            yield first
            while piece := curl.stdout.read1(65536):
                yield piece
            if code := curl.wait():
                errors.seek(0)
                raise RuntimeError(f"curl ends with {code}: {errors.read().decode()}")
        if method == "GET" and path == "/events":
            return 200, pieces()
        whole = b"".join(pieces())
        errors.seek(0)
        return int(errors.read().decode()[-3:]), iter([whole])
    return ask


http_checks(connect)
main(warm=False)
