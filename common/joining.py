"""Prompt and response as one text, without a template: one place for SFT, reward model and PPO, so that they agree."""

_CLOSES = tuple(".,;:!?)]}%’”")
"""What stands directly after a word."""


def join_response(prompt: str, response: str) -> str:
    """Prompt and response as one text, as a policy that goes on with the prompt writes it.

    A blank between them unless one is there, the prompt is empty, or the response begins with a closing mark.
    """
    if not prompt or not response or prompt[-1].isspace() or response[0].isspace() or response.startswith(_CLOSES):
        return prompt + response
    return f"{prompt} {response}"


def cut_joined(prompt: str, response: str) -> tuple[str, str]:
    """The joined text, cut where the response begins: the blanks between are the response's.

    Tokenizers of the BPE kind write a word together with the blank before it, so that a prompt that ended in a blank
    would be followed by words that the model never saw there.
    """
    head = prompt.rstrip(" ")
    return head, join_response(prompt, response)[len(head) :]
