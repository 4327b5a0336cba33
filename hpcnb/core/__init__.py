"""What both programs share, the notebook side and the rank side: values, codecs and pure decisions.

Standard library and msgpack only. Everything here pickles; nothing here starts a process, a thread or a
socket.
"""
