"""The paper's comparisons at a size that runs on two cores: arms that differ in one thing, on digit scans."""
