"""The inbox: what arrived for this workspace, from the platform's rows to the message an agent is handed.

classify.py  a row -> what it is (pure) · journal.py  what arrived and what became of it (SQLite)
poller.py    the platform's feed into the journal · mailbox.py  the journal's messages to whoever waits
"""
