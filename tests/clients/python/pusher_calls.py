"""PyPI's `pusher`, unchanged, against a running Herald: prints one line of JSON with everything that it was answered."""

import json
import os

import pusher

client = pusher.Pusher(
    app_id=os.environ["PUSHER_APP_ID"],
    key=os.environ["PUSHER_KEY"],
    secret=os.environ["PUSHER_SECRET"],
    host=os.environ["PUSHER_HOST"],
    port=int(os.environ["PUSHER_PORT"]),
    ssl=False,
)


def refusal(call):
    """The class and the text of the error that a call raises."""
    try:
        call()
    except Exception as error:  # every error of the SDK is of interest
        return [type(error).__name__, str(error).strip()]
    return None


answers = {
    "trigger": client.trigger(["room", "private-room"], "msg", {"message": "Grüße"}),
    "text": client.trigger("room", "msg", "just text"),
    "socket_id": client.trigger("room", "msg", {"n": 1}, socket_id="1234.1234"),
    "batch": client.trigger_batch(
        [
            {"channel": "room", "name": "one", "data": {"n": 1}},
            {"channel": "room", "name": "two", "data": {"n": 2}},
        ]
    ),
    "send_to_user": client.send_to_user("12345", "msg", {"for": "one"}),
    "channels": client.channels_info(),
    "presence": client.channels_info("presence-", ["user_count"]),
    "channel": client.channel_info("presence-team", ["user_count"]),
    "users": client.users_info("presence-team"),
    "terminate": client.terminate_user_connections("12345"),
    "not_presence": refusal(lambda: client.users_info("room")),
    "wrong_info": refusal(lambda: client.channel_info("room", ["user_count"])),
}
stranger = pusher.Pusher(
    app_id=os.environ["PUSHER_APP_ID"],
    key=os.environ["PUSHER_KEY"],
    secret="wrong",
    host=os.environ["PUSHER_HOST"],
    port=int(os.environ["PUSHER_PORT"]),
    ssl=False,
)
answers["wrong_secret"] = refusal(lambda: stranger.trigger("room", "msg", {}))[0]
print(json.dumps(answers))
