"""The status page, its demo and the JavaScript client in Debian's Chromium, against real nodes."""
