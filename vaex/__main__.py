from vaex.cli import main

main()
