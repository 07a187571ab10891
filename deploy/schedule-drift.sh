#!/usr/bin/env bash
# Request a drift report from the service every morning:
#   PROJECT=... REGION=... [SERVICE=droneseg-api] deploy/schedule-drift.sh
set -euo pipefail
: "${PROJECT:?}" "${REGION:?}"
service="${SERVICE:-droneseg-api}"
caller="droneseg-invoke@$PROJECT.iam.gserviceaccount.com"
url="$(gcloud run services describe "$service" --region="$REGION" --project="$PROJECT" --format='value(status.url)')"
gcloud run services add-iam-policy-binding "$service" --region="$REGION" --project="$PROJECT" \
    --member="serviceAccount:$caller" --role=roles/run.invoker --quiet >/dev/null
key="$(gcloud secrets versions access latest --secret=droneseg-api-key --project="$PROJECT")"
action=create headers=--headers
if gcloud scheduler jobs describe "$service-drift" --project="$PROJECT" --location="$REGION" >/dev/null 2>&1; then
    action=update headers=--update-headers
fi
# the request timeout of Cloud Run is 300 s: timeoutSeconds in deploy/api.yaml
gcloud scheduler jobs "$action" http "$service-drift" --project="$PROJECT" --location="$REGION" \
    --schedule="0 6 * * *" --time-zone=Etc/UTC --uri="$url/drift?n=500" --http-method=GET --attempt-deadline=300s \
    --oidc-service-account-email="$caller" --oidc-token-audience="$url" "$headers=X-API-Key=$key"
