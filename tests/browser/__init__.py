"""The status page, its demo and the JavaScript client in Debian's Chromium, against real nodes.

Pictures of the page are left in `.artifacts/screenshots`: look at them when you change how it looks.
"""
