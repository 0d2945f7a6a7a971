"""The program in the README runs as it stands."""

import re


def test_the_complete_program_of_the_readme_trains(request, tmp_path, capsys):
    readme = (request.config.rootpath / "README.md").read_text()
    program = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[0]
    assert len([line for line in program.splitlines() if line.strip()]) <= 25
    variables: dict = {}
    exec(program, variables)
    result = variables["result"]
    assert result.metrics["val/accuracy"] > 0.9
    assert (tmp_path / "lightjax_logs" / "version_0" / "metrics.csv").exists()
    assert "val/accuracy" in capsys.readouterr().out
