import subprocess, sys
from tests.server_process import ServerProcess
KEY="sk-openapi-0123456789abcdef"
with ServerProcess("--api-key", KEY) as s:
    r=subprocess.run([".venv/bin/schemathesis","run",s.url+"/openapi.json","-H",f"Authorization: Bearer {KEY}","--phases","examples,coverage,fuzzing","-n","20","--seed","1","--workers","1",*sys.argv[1:]],capture_output=True,text=True)
    print(r.stdout[-15000:], r.stderr[-3000:])
