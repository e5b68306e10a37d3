"""A local web page that draws and answers, for people who want to look before they program.

``mmar demo --model FOLDER`` starts it. It needs the extra ``demo``, and it loads nothing from other machines.
"""
