from hyperzoo.cli import main

main()
