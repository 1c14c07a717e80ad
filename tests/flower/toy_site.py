"""The app of a toy site: answers with what it was asked, or fails with a secret in the error."""

import os

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("aulait")
def query(message: Message, context: Context) -> Message:
    asked = message.content["ask"]["text"]
    if asked == "fail":
        raise ValueError("the secret diagnosis")
    told = {"text": f"site app answers {asked}", "config": str(dict(context.run_config)), "fab": str(context.run_config.get("evil", "")),
            "limit": os.environ.get("AULAIT_MESSAGE_BYTES", "")}
    return Message(RecordDict({"answer": ConfigRecord(told)}), reply_to=message)
