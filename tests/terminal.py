"""terminal.py - a program on a terminal of its own, for what is asked and shown only there. Called as
a program it tells why there can be no terminal, and nothing where there can: a test is skipped then."""
import os
import pty


def missing():
    """Why there is no terminal to be had; empty: there is."""
    try:
        for end in pty.openpty():
            os.close(end)
    except OSError as error:
        return f"no pty device: {error}"
    return ""


def run(words, reply=lambda text: b""):
    """Status and output of a program that stands on a terminal; reply(all that it has printed) is what
    is typed when it asks."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(words[0], words)
    text = b""
    try:
        while chunk := os.read(terminal, 4096):
            text += chunk
            if text.endswith(b"[y/N] "):
                os.write(terminal, reply(text) or b"\x04")
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


if __name__ == "__main__":
    print(missing())
