import urllib.error
import urllib.request

from driver import http_checks, main


def connect(way):
    def ask(method, path, body=None):
        request = urllib.request.Request(way["url"] + path, body, way["headers"], method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=10)
        except urllib.error.HTTPError as error:
            answer = error
        return answer.status, iter(lambda: answer.read1(65536), b"")
    return ask


http_checks(connect)
main()
