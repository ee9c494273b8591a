"""The stages of `build`, run in order: from the cache or anew; publishes all or nothing."""

from hermes_deploy.pipeline.build import build_artifact, plan_artifact
from hermes_deploy.pipeline.events import StageEvent
from hermes_deploy.pipeline.request import BuildReport, BuildRequest, PlanReport

__all__ = ["BuildReport", "BuildRequest", "PlanReport", "StageEvent", "build_artifact", "plan_artifact"]
