"""What was trained how: numbers and `main()` alone, imported by nobody. `python -m minikeye.training.recipes.mini`"""
