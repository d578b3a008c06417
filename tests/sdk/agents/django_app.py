"""An agent on Django, with the settings of a new project: DEBUG, so that only local names are allowed as Host."""

import os
import sys
import time

import django
from django.conf import settings
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

settings.configure(
    DEBUG=True, ROOT_URLCONF=__name__, SECRET_KEY="only for this test", ALLOWED_HOSTS=[],
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"])
django.setup()


@csrf_exempt
def echo(request):
    return JsonResponse({"method": request.method, "path": request.get_full_path(), "bytes": len(request.body),
                         "peer": request.headers.get("x-mesh-peer-cn")})


def redirect(request):
    return HttpResponseRedirect(request.build_absolute_uri("/landed"))


def landed(_):
    return HttpResponse("landed")


def events(_):
    def pieces():
        for word in ("hello", "from", "grok"):
            yield f"data: {word}\n\n"
            time.sleep(0.2)
    return StreamingHttpResponse(pieces(), content_type="text/event-stream")


# CommonMiddleware redirects /folder to /folder/.
urlpatterns = [path("echo", echo), path("redirect", redirect), path("landed", landed), path("folder/", landed),
               path("events", events)]

if __name__ == "__main__":
    from django.core.management import execute_from_command_line
    execute_from_command_line([sys.argv[0], "runserver", "--noreload", "--skip-checks", f"127.0.0.1:{os.environ['PORT']}"])
