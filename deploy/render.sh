#!/usr/bin/env bash
# Fill in PROJECT, REGION and IMAGE in a template: deploy/render.sh deploy/api.yaml service.yaml
set -euo pipefail
: "${PROJECT:?}" "${REGION:?}" "${IMAGE:?}"
sed -e "s|\${PROJECT}|$PROJECT|g" -e "s|\${REGION}|$REGION|g" -e "s|\${IMAGE}|$IMAGE|g" "$1" >"$2"
if grep -n '\${' "$2"; then
    echo "$1: unknown variables in the lines above; only PROJECT, REGION and IMAGE are filled in" >&2
    exit 1
fi
