"""What scripts/schemathesis does beside the configuration: right credentials for apps that change.

The calls that change an app's own key or secret would shut out those that follow. So they are spread over some apps, and
each call to such an app, or to one that another call has created, is given the pair that the app has at that moment.
Every eighth call keeps the credentials that schemathesis has chosen.
"""

import base64
import itertools
import json
import os
import urllib.error
import urllib.parse
import urllib.request

import schemathesis

URL = os.environ["HERALD_URL"]
ADMIN = "pusher_admin_username:pusher_admin_password"
OF_APPS = "/api/apps/{slug}"
CHANGES = {(OF_APPS, "PATCH"), (OF_APPS + "/rotate", "POST")}
# The apps may each change themselves 30 times a minute.
CHANGING = [f"changing-app-{nth}" for nth in range(30)]
# The app whose key and secret are in the configuration.
SEEDED = "test-app"

calls = itertools.count()


def basic(credentials):
    return "Basic " + base64.b64encode(credentials.encode()).decode()


def pair_of(slug):
    """The key and secret of an app, or None if there is no such app."""
    url = f"{URL}/api/admin/apps/{urllib.parse.quote(slug, safe='')}"
    request = urllib.request.Request(url, headers={"Authorization": basic(ADMIN)})
    try:
        app = json.load(urllib.request.urlopen(request, timeout=10))["data"]
    except (urllib.error.HTTPError, ValueError):
        return None
    return f"{app['key']}:{app['secret']}"


@schemathesis.hook
def before_call(context, case, kwargs):
    if not case.operation.path.startswith(OF_APPS) or next(calls) % 8 == 0:
        return
    if (case.operation.path, case.method.upper()) in CHANGES:
        case.path_parameters["slug"] = CHANGING[next(calls) % len(CHANGING)]
    slug = (case.path_parameters or {}).get("slug")
    if not isinstance(slug, str) or slug in ("", SEEDED):
        return
    pair = pair_of(slug)
    if pair is not None:
        case.headers["Authorization"] = basic(pair)
