import urllib3
from driver import http_checks, main


def connect(way):
    pool = urllib3.ProxyManager(way["proxy"]) if way["proxy"] else urllib3.PoolManager()

    def ask(method, path, body=None):
        answer = pool.request(method, way["url"] + path, body=body, headers=way["headers"], preload_content=False, timeout=10)
        return answer.status, answer.stream(None)
    return ask


http_checks(connect)
main()
