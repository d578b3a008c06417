import requests
from driver import check, expect, http_checks, main


def connect(way):
    session = requests.Session()
    session.headers.update(way["headers"])
    url = way["url"]

    def ask(method, path, body=None):
        answer = session.request(method, url + path, data=body, stream=True, timeout=10)
        return answer.status_code, answer.iter_content(1)
    return ask


http_checks(connect)


@check
def slash(way):
    answer = requests.get(way["url"] + "/folder", headers=way["headers"], timeout=10)
    expect((answer.status_code, answer.text.strip()) == (200, "landed"),
           f"/folder, to which the server adds a slash: {answer.url} {answer.status_code} {answer.text[:200]}")


main()
