#!/usr/bin/env bash
# Set up an empty Google Cloud project. Running it again skips what already exists.
#   PROJECT=my-project REGION=europe-west1 [REPOSITORY=owner/name] deploy/setup.sh
set -euo pipefail
: "${PROJECT:?set PROJECT to the project id}" "${REGION:?set REGION, for example europe-west1}"
cd "$(dirname "$0")"
export CLOUDSDK_CORE_PROJECT="$PROJECT" # for this script only; your gcloud configuration does not change
account() { echo "$1@$PROJECT.iam.gserviceaccount.com"; }
exists() { "$@" >/dev/null 2>&1; }
try() { # a new account takes a moment to be known everywhere
    local left
    for left in 5 4 3 2 1; do
        "$@" >/dev/null && return
        echo "retrying in 15 s, $left attempts left" >&2
        sleep 15
    done
    "$@" >/dev/null
}

gcloud services enable --quiet run.googleapis.com artifactregistry.googleapis.com cloudbuild.googleapis.com \
    secretmanager.googleapis.com aiplatform.googleapis.com cloudscheduler.googleapis.com monitoring.googleapis.com \
    iam.googleapis.com iamcredentials.googleapis.com sts.googleapis.com cloudresourcemanager.googleapis.com storage.googleapis.com

exists gcloud artifacts repositories describe droneseg --location="$REGION" ||
    gcloud artifacts repositories create droneseg --location="$REGION" --repository-format=docker

# models, data and trainings are kept, replaced versions for 30 days; records and reports for 90 days
# `gcloud builds submit` uploads the sources to PROJECT_cloudbuild
models="gs://$PROJECT-droneseg" records="gs://$PROJECT-droneseg-records" sources="gs://${PROJECT}_cloudbuild"
for bucket in "$models" "$records" "$sources"; do
    exists gcloud storage buckets describe "$bucket" ||
        gcloud storage buckets create "$bucket" --location="$REGION" --uniform-bucket-level-access --public-access-prevention
done
gcloud storage buckets update "$models" --versioning --lifecycle-file=lifecycle-models.json --quiet
gcloud storage buckets update "$records" --lifecycle-file=lifecycle.json --quiet

if ! exists gcloud secrets describe droneseg-api-key; then
    python3 -c 'import secrets; print(secrets.token_urlsafe(32), end="")' |
        gcloud secrets create droneseg-api-key --replication-policy=automatic --data-file=-
fi

for name in serve train deploy read invoke; do
    exists gcloud iam service-accounts describe "$(account "droneseg-$name")" ||
        gcloud iam service-accounts create "droneseg-$name" --display-name="droneseg: $name"
done
on_bucket() { try gcloud storage buckets add-iam-policy-binding "$1" --member="serviceAccount:$(account "$2")" --role="$3" --quiet; }
on_project() { try gcloud projects add-iam-policy-binding "$PROJECT" --member="serviceAccount:$(account "$1")" --role="$2" --condition=None --quiet; }
on_account() { try gcloud iam service-accounts add-iam-policy-binding "$(account "$1")" --member="serviceAccount:$(account "$2")" --role=roles/iam.serviceAccountUser --quiet; }

# the service reads models and its API key, and writes records and metrics
on_bucket "$models" droneseg-serve roles/storage.objectViewer
on_bucket "$records" droneseg-serve roles/storage.objectUser
on_project droneseg-serve roles/monitoring.metricWriter
on_project droneseg-serve roles/logging.logWriter
for name in serve deploy; do # the deployment calls the service for a smoke test
    try gcloud secrets add-iam-policy-binding droneseg-api-key --member="serviceAccount:$(account "droneseg-$name")" \
        --role=roles/secretmanager.secretAccessor --quiet
done
# a training reads data and writes results
on_bucket "$models" droneseg-train roles/storage.objectUser
on_project droneseg-train roles/logging.logWriter
# the deployment builds, pushes and replaces services that run as droneseg-serve, and promotes models
on_project droneseg-deploy roles/run.developer
on_project droneseg-deploy roles/run.invoker
try gcloud artifacts repositories add-iam-policy-binding droneseg --location="$REGION" \
    --member="serviceAccount:$(account droneseg-deploy)" --role=roles/artifactregistry.writer --quiet
on_bucket "$sources" droneseg-deploy roles/storage.objectViewer
on_project droneseg-deploy roles/logging.logWriter
on_bucket "$models" droneseg-deploy roles/storage.objectUser
on_account droneseg-serve droneseg-deploy
# the comparison of candidates only reads
on_bucket "$models" droneseg-read roles/storage.objectViewer

if [ -n "${REPOSITORY:-}" ]; then
    # workflows of this GitHub repository authenticate as these accounts, without a stored key
    number="$(gcloud projects describe "$PROJECT" --format='value(projectNumber)')"
    pool="projects/$number/locations/global/workloadIdentityPools/github"
    exists gcloud iam workload-identity-pools describe github --location=global ||
        gcloud iam workload-identity-pools create github --location=global
    exists gcloud iam workload-identity-pools providers describe github --location=global --workload-identity-pool=github ||
        gcloud iam workload-identity-pools providers create-oidc github --location=global \
            --workload-identity-pool=github --issuer-uri=https://token.actions.githubusercontent.com \
            --attribute-mapping=google.subject=assertion.sub,attribute.repository=assertion.repository,attribute.place="assertion.repository + ':' + (has(assertion.environment) ? assertion.environment : '')" \
            --attribute-condition="assertion.repository == '$REPOSITORY'"
    trust() { gcloud iam service-accounts add-iam-policy-binding "$(account "$1")" --role=roles/iam.workloadIdentityUser --member="$2" --quiet >/dev/null; }
    trust droneseg-read "principalSet://iam.googleapis.com/$pool/attribute.repository/$REPOSITORY"
    for environment in production model-promotion; do
        # only jobs in this environment; not identified by GitHub's subject, which has several formats
        trust droneseg-deploy "principalSet://iam.googleapis.com/$pool/attribute.place/$REPOSITORY:$environment"
    done
    echo "Set these variables of the GitHub repository: WORKLOAD_IDENTITY_PROVIDER=$pool/providers/github PROJECT=$PROJECT REGION=$REGION"
    echo "  READING_SERVICE_ACCOUNT=$(account droneseg-read)"
    echo "Set this variable of the environments production and model-promotion: SERVICE_ACCOUNT=$(account droneseg-deploy)"
fi
echo "$PROJECT is ready. Next: deploy the service as described in docs/deploy.md."
