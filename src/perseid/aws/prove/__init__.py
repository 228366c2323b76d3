"""What AWS does and no double can show, measured in somebody's account for less than a dollar.

`proof`: what was found, a line each, and their names. `budget`: the cap. `steps`: how each line is
measured. `prove`: all of them in order, between deploying and removing. `page`: the page.
"""
