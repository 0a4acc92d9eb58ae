"""A real Django site in one file, as an ASGI app: settings, URLs, views, a template and the CSRF check.

modalnomad serve examples/django_site.py

curl "$URL/"                → the page
curl "$URL/squares/?n=4"    → {"n": 4, "squares": [1, 4, 9, 16]}
curl -d x=1 "$URL/"         → 403: Django's own CSRF protection
"""

import modal

image = modal.Image.debian_slim().pip_install("django~=5.2")
app = modal.App("django-site", image=image)

PAGE = """<!doctype html>
<title>Django</title>
<h1>Django {{ version }}</h1>
<form method="post">{% csrf_token %}<input name="name"> <button>Send</button></form>
{% if name %}<p>Thank you, {{ name }}.</p>{% endif %}
"""


@app.function()
@modal.concurrent(max_inputs=50)
@modal.asgi_app()
def site():
    import secrets

    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse, JsonResponse
    from django.template import engines
    from django.urls import path

    def page(request):
        template = engines["django"].from_string(PAGE)
        values = {"version": django.get_version(), "name": request.POST.get("name", "")}
        return HttpResponse(template.render(values, request))

    async def squares(request):
        n = min(int(request.GET.get("n", 3)), 100)
        return JsonResponse({"n": n, "squares": [i * i for i in range(1, n + 1)]})

    settings.configure(
        SECRET_KEY=secrets.token_urlsafe(50),
        ALLOWED_HOSTS=[".localhost", "127.0.0.1"],
        ROOT_URLCONF=(path("", page), path("squares/", squares)),
        MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    )
    return get_asgi_application()
