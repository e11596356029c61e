### login
curl -X POST https://your-server/api/v1/auth/login \
  -H "Content-Type: application/json" \
  -d '{
    "username": "your-username",
    "password": "your-password"
  }'

### use a token
curl -X GET https://your-server/api/v1/environments \
  -H "Authorization: Bearer <token>"

### me
curl -X GET https://your-server/api/v1/auth/me \
  -H "Authorization: Bearer <token>"

### create
curl -X POST https://your-server/api/v1/environments \
  -H "Authorization: Bearer <token>" \
  -H "Content-Type: application/json" \
  -d '{
    "name": "my-python-env",
    "image": "python:3.11-slim",
    "resources": {
      "cpu": "500m",
      "memory": "512Mi",
      "storage": "1Gi"
    },
    "timeout": 3600,
    "env": {
      "MY_VAR": "my-value"
    },
    "labels": {
      "project": "my-project"
    }
  }'

### list
curl -X GET "https://your-server/api/v1/environments?status=running&limit=10&offset=0" \
  -H "Authorization: Bearer <token>"

### get
curl -X GET https://your-server/api/v1/environments/env-abc123 \
  -H "Authorization: Bearer <token>"

### exec
curl -X POST https://your-server/api/v1/environments/env-abc123/exec \
  -H "Authorization: Bearer <token>" \
  -H "Content-Type: application/json" \
  -d '{
    "command": ["python", "-c", "print(\"Hello, World!\")"],
    "timeout": 30
  }'

### exec a shell script
curl -X POST https://your-server/api/v1/environments/env-abc123/exec \
  -H "Authorization: Bearer <token>" \
  -H "Content-Type: application/json" \
  -d '{
    "command": ["sh", "-c", "echo $PATH && ls -la /tmp"]
  }'

### exec an installation
curl -X POST https://your-server/api/v1/environments/env-abc123/exec \
  -H "Authorization: Bearer <token>" \
  -H "Content-Type: application/json" \
  -d '{
    "command": ["sh", "-c", "pip install requests && python -c \"import requests; print(requests.__version__)\""],
    "timeout": 120
  }'

### write a file
curl -X POST https://your-server/api/v1/environments/env-abc123/exec \
  -H "Authorization: Bearer <token>" \
  -H "Content-Type: application/json" \
  -d '{
    "command": ["sh", "-c", "cat > /tmp/script.py << EOF\nimport sys\nprint(f\"Python {sys.version}\")\nEOF"]
  }'

### execute the file
curl -X POST https://your-server/api/v1/environments/env-abc123/exec \
  -H "Authorization: Bearer <token>" \
  -H "Content-Type: application/json" \
  -d '{
    "command": ["python", "/tmp/script.py"]
  }'

### logs
curl -X GET "https://your-server/api/v1/environments/env-abc123/logs?tail=100&timestamps=true" \
  -H "Authorization: Bearer <token>"

### create a key
curl -X POST https://your-server/api/v1/api-keys \
  -H "Authorization: Bearer <token>" \
  -H "Content-Type: application/json" \
  -d '{
    "description": "CI/CD Pipeline Key",
    "expires_in": 90,
    "permissions": [
      {
        "environment_id": "env-abc123",
        "permission": "write"
      }
    ]
  }'

### use a key
curl -X GET https://your-server/api/v1/environments \
  -H "Authorization: Bearer agentbox_1234567890abcdef..."

### list keys
curl -X GET https://your-server/api/v1/api-keys \
  -H "Authorization: Bearer <token>"

### revoke a key
curl -X DELETE https://your-server/api/v1/api-keys/key-abc123 \
  -H "Authorization: Bearer <token>"

### health
curl -X GET https://your-server/api/v1/health

### delete
curl -X DELETE "https://your-server/api/v1/environments/env-abc123?force=false" \
  -H "Authorization: Bearer <token>"

### follow
curl -N -X GET "https://your-server/api/v1/environments/env-abc123/logs?follow=true&tail=10" \
  -H "Authorization: Bearer <token>"
